// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Vm} from "forge-std/Vm.sol";

import {JobState, Order} from "../../src/interfaces/IJobEscrow.sol";
import {Base} from "../Base.sol";
import {FeeToken} from "../mocks/HostileTokens.sol";
import {TestToken} from "../mocks/TestToken.sol";
import {KeyWallet} from "../mocks/Wallets.sol";

/// @notice The people, tokens and orders of a small market.
/// @dev All orders exist from the start, so that each has one jobId and one price for good: the requester's vouchers are over
/// exactly the orders that it did not open, and whatever pays for one, by whichever rail, must do so once and at that price.
abstract contract Market is Base {
    uint256 internal constant REQUESTERS = 3;
    uint256 internal constant NODES = 2;
    uint256 internal constant TOKENS = 3;
    /// Orders of each requester in each token. The one at `i` has nonce `i + 1` and is meant for node `i % 2`.
    uint64 internal constant PER_PAIR = 8;
    uint256 internal constant MAX_LIFE = 80 days;

    /// @dev Two keys and, last, a contract wallet.
    address[REQUESTERS] internal _who;
    Vm.Wallet[] internal _keys;
    Vm.Wallet[] internal _sessionKeys;
    Vm.Wallet[] internal _nodes;
    /// @dev Native, ERC-20, and one that keeps a fee of every transfer.
    address[TOKENS] internal _tokens;
    address internal arbiter = makeAddr("arbiter");
    Order[] internal _orders;
    bytes32[] internal _ids;
    mapping(bytes32 jobId => uint256) internal _indexOf;

    /// @dev Wei staked at first.
    uint256 internal _staked;
    mapping(bytes32 jobId => bool) internal _opened;

    constructor() {
        setUp();
        vm.warp(NOW);
        _tokens = [NATIVE, address(token), address(new FeeToken())];
        for (uint256 r = 0; r < REQUESTERS; ++r) {
            _keys.push(vm.createWallet(string.concat("requester ", vm.toString(r))));
            _sessionKeys.push(vm.createWallet(string.concat("session key ", vm.toString(r))));
            _who[r] = r == 2 ? address(new KeyWallet(_keys[r].addr)) : _keys[r].addr;
            for (uint256 t = 1; t < TOKENS; ++t) {
                vm.prank(_who[r]);
                TestToken(_tokens[t]).approve(address(escrow), type(uint256).max);
            }
        }
        _nodes.push(node);
        _nodes.push(otherNode);
        _register(otherNode.addr, 2 * MIN_STAKE);
        _staked = 3 * MIN_STAKE;
        for (uint256 r = 0; r < REQUESTERS; ++r) {
            for (uint256 t = 0; t < TOKENS; ++t) {
                for (uint64 i = 0; i < PER_PAIR; ++i) {
                    _addOrder(r, t, i);
                }
            }
        }
    }

    /// @dev Every way to be settled: at once, with a window, before an arbiter, and assigned with and without one.
    function _addOrder(uint256 r, uint256 t, uint64 i) private {
        Order memory order;
        order.requester = _who[r];
        order.token = _tokens[t];
        order.nonce = i + 1;
        order.maxPrice = uint128(_ids.length + 1) * 0.04 ether;
        order.specHash = _specHash(_spec());
        order.deadline = uint64(NOW + MAX_LIFE / PER_PAIR * (1 + uint256(i)));
        order.maxFeeBps = uint16(i % 3) * 300;
        uint256 kind = (i / 2 + t + r) % 4;
        if (kind != 0) order.challengeWindow = uint32(kind) * 4 hours;
        if (kind > 1) order.arbiter = arbiter;
        if (kind == 3) order.assigner = assigner.addr;
        else order.node = _nodes[i % NODES].addr;
        bytes32 jobId = escrow.jobIdOf(order);
        _indexOf[jobId] = _ids.length;
        _orders.push(order);
        _ids.push(jobId);
    }

    function _priceOf(uint256 index) internal pure returns (uint128) {
        return uint128(index + 1) * 0.03 ether;
    }

    function _nodeFor(uint256 index) internal view returns (Vm.Wallet storage) {
        return _nodes[index % PER_PAIR % NODES];
    }

    function _requesterOf(uint256 index) internal pure returns (uint256) {
        return index / (TOKENS * PER_PAIR);
    }

    function _channelId(address from, address to, address token_) internal pure returns (bytes32) {
        return keccak256(abi.encode(from, to, token_));
    }

    /// @dev What the orders of the channel up to `last` cost that the requester did not open on-chain.
    function _owedByVoucher(uint256 r, uint256 n, uint256 t, uint64 last) internal view returns (uint128 sum) {
        uint256 start = (r * TOKENS + t) * PER_PAIR;
        for (uint256 i = n; i < last; i += NODES) {
            if (!_opened[_ids[start + i]]) sum += _priceOf(start + i);
        }
    }

    // ── What the contracts say ──────────────────────────────────────────────────────────────────────────────────────

    function _held(address token_) internal view returns (uint256) {
        return token_ == NATIVE ? address(escrow).balance : IERC20(token_).balanceOf(address(escrow));
    }

    /// @dev All that is owed of a token, but for what is locked in jobs.
    function _owedIdle(uint256 t) internal view returns (uint256 sum) {
        address token_ = _tokens[t];
        sum = escrow.fees(token_);
        for (uint256 n = 0; n < NODES; ++n) {
            sum += escrow.earned(_nodes[n].addr, token_);
        }
        for (uint256 r = 0; r < REQUESTERS; ++r) {
            (uint128 free, uint128 thawing,) = escrow.account(_who[r], token_);
            sum += uint256(free) + thawing;
            for (uint256 n = 0; n < NODES; ++n) {
                (uint256 reserved,,) = escrow.reservation(_who[r], _nodes[n].addr, token_);
                sum += reserved;
            }
        }
    }

    function _stateOf(uint256 index) internal view returns (JobState state) {
        (state,,,) = escrow.job(_ids[index]);
    }
}
