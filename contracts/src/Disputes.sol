// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {IJobEscrow, JobState, Order} from "./interfaces/IJobEscrow.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {Jobs} from "./Jobs.sol";

/// @title What requester and arbiter may do while a result waits
/// @dev Orders with an arbiter lock a bond of the node's stake when their result comes in, and release it when the job ends,
/// however that is.
abstract contract Disputes is Jobs {
    using SafeCast for uint256;

    /// @inheritdoc IJobEscrow
    function accept(Order calldata order) external override {
        (bytes32 jobId, Job storage j) = _ownWaiting(order);
        _settle(jobId, order, j);
    }

    /// @inheritdoc IJobEscrow
    function dispute(Order calldata order) external override {
        (bytes32 jobId, Job storage j) = _ownWaiting(order);
        require(j.state == JobState.Submitted, WrongState(j.state));
        require(order.arbiter != address(0), NoArbiter());
        require(block.timestamp < j.timer, TooLate(j.timer));

        uint128 bond = _disputeBond(order);
        (uint256 drawn, uint256 free, uint256 thawing) = _draw(_accounts[order.token][msg.sender], bond);
        require(drawn == bond, Insufficient(msg.sender, order.token, drawn, bond));
        uint64 decideBy = uint64(block.timestamp) + arbiterPeriod;
        _store(j, JobState.Disputed, j.signed, j.nodeNumber, decideBy, (uint256(j.amount) + bond).toUint128());
        emit JobDisputed(jobId, msg.sender, _nodeOf(j, order), order.token, bond, decideBy, free, thawing);
    }

    /// @inheritdoc IJobEscrow
    function resolve(Order calldata order, uint16 payNodeBps, uint16 slashBps) external override {
        require(msg.sender == order.arbiter, NotArbiter(order.arbiter, msg.sender));
        require(payNodeBps <= BPS, ShareTooHigh(payNodeBps));
        require(slashBps <= BPS, ShareTooHigh(slashBps));
        bytes32 jobId = jobIdOf(order);
        Job storage j = _jobs[jobId];
        require(j.state == JobState.Disputed, WrongState(j.state));
        require(block.timestamp < j.timer, TooLate(j.timer));

        // A voucher has paid for the job meanwhile: there is nothing left to decide.
        if (j.signed && _isCovered(order, _nodeOf(j, order))) return _settle(jobId, order, j);
        _resolve(jobId, order, j, payNodeBps, slashBps);
    }

    function _resolve(bytes32 jobId, Order calldata order, Job storage j, uint256 payNodeBps, uint256 slashBps)
        private
    {
        address node = _nodeOf(j, order);
        uint128 price = j.amount - _disputeBond(order);
        // forge-lint: disable-next-line(unsafe-typecast)
        uint128 paid = uint128(uint256(price) * payNodeBps / BPS); // at most `price`
        bool signed = j.signed;
        _store(j, JobState.Resolved, signed, signed ? j.nodeNumber : 0, 0, signed ? paid : 0);
        j.resultHash = 0;
        _divide(jobId, order, node, price, paid, payNodeBps != BPS, slashBps);
    }

    function _divide(
        bytes32 jobId,
        Order calldata order,
        address node,
        uint128 price,
        uint128 paid,
        bool lost,
        uint256 slashBps
    ) private {
        (uint256 slashed, uint256 compensation) = _slash(order, node, price, lost, slashBps);
        uint128 bond = lost ? 0 : _disputeBond(order); // the node's
        uint256 free = _giveBackInDispute(order, price - paid, compensation, lost);
        if (_jobs[jobId].signed) _claimForOrder(jobId, order, node, paid);
        uint256 total = paid - _takeFee(jobId, order, paid);
        total = _earn(node, order.token, total + bond);
        _tellResolved(jobId, order, node, paid, bond, slashed, compensation, free, total);
    }

    /// @dev What the requester gets: the rest of the price, the compensation, the bond unless it is the node's.
    function _giveBackInDispute(Order calldata order, uint128 rest, uint256 compensation, bool lost)
        private
        returns (uint256 free)
    {
        // forge-lint: disable-next-line(unsafe-typecast)
        rest += uint128(compensation); // at most the price
        if (lost) rest += _disputeBond(order);
        return _credit(order.requester, order.token, rest);
    }

    function _slash(Order calldata order, address node, uint128 price, bool lost, uint256 slashBps)
        private
        returns (uint256 slashed, uint256 compensation)
    {
        uint256 slash = INodeRegistry(registry).bond() * slashBps / BPS;
        return INodeRegistry(registry).releaseBond(node, true, lost, slash, order.token == address(0) ? price : 0);
    }

    /// @dev On its own for the compiler's unoptimized pipeline, which measures coverage.
    function _tellResolved(
        bytes32 jobId,
        Order calldata order,
        address node,
        uint128 paid,
        uint128 bond,
        uint256 slashed,
        uint256 compensation,
        uint256 free,
        uint256 total
    ) private {
        emit JobResolved(jobId, order.requester, node, order.token, paid, bond, slashed, compensation, free, total);
    }

    /// @dev The caller's job, whose result is waiting or in dispute.
    function _ownWaiting(Order calldata order) private view returns (bytes32 jobId, Job storage j) {
        require(order.requester == msg.sender, NotRequester(order.requester, msg.sender));
        jobId = jobIdOf(order);
        j = _jobs[jobId];
        require(_isWaiting(j.state), WrongState(j.state));
    }
}
